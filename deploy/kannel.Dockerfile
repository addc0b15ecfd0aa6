# Kannel from Debian, for compose.yaml: bearerbox and smsbox with one configuration.
ARG BASE=debian:trixie-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends kannel && rm -rf /var/lib/apt/lists/*
USER kannel
WORKDIR /tmp
CMD ["bearerbox", "-v", "2", "/etc/kannel/jingyin.conf"]

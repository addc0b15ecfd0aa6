"""The files of deploy/ against the programs that read them, where installed, and against the code's metrics."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jingyin.serve.gateways.client import REGISTRY
from jingyin.serve.observe import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
_METRIC = re.compile(r"\bjingyin_[a-z_]+")


def run(*command: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    ended = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def expressions() -> list[str]:
    """Return every expression of the rules and of the dashboard."""
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    panels = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))["panels"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    return rules + [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_metric_exists() -> None:
    known = set()
    for family in (*Metrics().registry.collect(), *REGISTRY.collect()):
        known |= {family.name + end for end in ("", "_total", "_bucket", "_sum", "_count")}
    named = {name for each in expressions() for name in _METRIC.findall(each)}
    assert named
    assert named <= known


def test_every_alert_is_tested() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
    tests = yaml.safe_load((DEPLOY / "alerts_test.yaml").read_text(encoding="utf-8"))["tests"]
    rung = {rule["alertname"] for test in tests for rule in test["alert_rule_test"] if rule["exp_alerts"]}
    silent = {rule["alertname"] for test in tests for rule in test["alert_rule_test"] if not rule["exp_alerts"]}
    assert rung == silent == set(alerts)


@pytest.mark.exhaustive
@pytest.mark.external
def test_alert_rules() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", "alerts_test.yaml")


@pytest.mark.external
def test_prometheus_configuration() -> None:
    assert "SUCCESS" in run("promtool", "check", "config", "prometheus.yaml")


@pytest.mark.external
def test_the_dashboard_can_be_computed(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}", "expr": each.replace("$__rate_interval", "5m")} for i, each in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in run("promtool", "check", "rules", str(file))


@pytest.mark.external
@pytest.mark.parametrize("unit", ["jingyin.service", "jingyin-gateway@smpp.service"])
def test_systemd_unit(unit: str, tmp_path: Path) -> None:
    text = (DEPLOY / unit.replace("@smpp", "@")).read_text(encoding="utf-8")
    installed = tmp_path / unit
    installed.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text), encoding="utf-8")
    run("systemd-analyze", "verify", "--man=no", str(installed))
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", str(installed))  # 0 the best, 100 the worst


def test_compose_starts_what_there_is() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in services.values())
    assert [name for name, service in services.items() if "ports" in service] == ["smsbox"]
    assert services["smpp"]["command"][2] == "jingyin.serve.gateways.smpp"
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file()
        if "build" in service:
            folder = (DEPLOY / service["build"]["context"]).resolve()
            assert (folder / service["build"]["dockerfile"]).is_file()


def test_the_image_holds_what_the_package_does() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    }
    assert copied >= {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "model", "serve", "train", "configs"}
    assert all((DEPLOY.parent / name).exists() for name in copied)
    assert "USER 10001:10001" in lines

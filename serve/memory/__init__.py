"""A gateway's memory: senders, contacts, known wordings, conversations and bursts; and its policy."""

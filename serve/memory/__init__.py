"""What a gateway remembers: senders, contacts, known wordings, conversations and bursts; and its policy."""

"""Makes two tables of jingyin.model: traditional to simplified characters, and characters that sound alike."""

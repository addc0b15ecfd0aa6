"""Makes the two committed tables of jingyin.model: traditional to simplified, and the lexicon."""

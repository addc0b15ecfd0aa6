"""Makes the committed tables of jingyin.model: traditional to simplified, parts and sounds of characters, lexicon."""

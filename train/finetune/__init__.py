"""`jingyin finetune`: from labelled messages of one's own to a bundle that is judged against the one that serves."""

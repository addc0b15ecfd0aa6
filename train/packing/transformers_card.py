"""The model card of an exported network."""

CARD = """---
language: zh
license: apache-2.0
library_name: transformers
pipeline_tag: text-classification
tags: [sms, extortion, debt-collection, spam-filter]
---
# jingyin, main network of bundle {id}

Flags pay-to-stop extortion and debt-collection threats in Chinese SMS. Labels: ordinary, lawful_collection,
debt_threat, pay_to_stop, other_threat.

```python
from jingyin.model.text import clean
from transformers import pipeline

classify = pipeline("text-classification", model="THIS FOLDER", top_k=None)
classify(str(clean("...").text), truncation=True)
```

The architecture is BART's because no class of transformers takes the mean of BERT's hidden states: the encoder is the
BERT, and the one decoder layer takes the mean. Float32 only: in float16 or bfloat16 the mean is lost. On 1,000 clean
texts its logits differ by at most {distance:.1e} from those of jingyin's float32 network.

## What this folder can't carry

- **Cleaning.** The network reads clean text: folded, simplified, disguises undone, numbers and links masked by
  private-use characters (`jingyin.model.text.clean`). Raw text gives worse answers without a warning.
- **Fusion.** What jingyin serves is this network's risk fused with that of a prefilter and, where the bundle has them,
  of other networks; the probabilities here are those of one network, not calibrated.
- **Thresholds.** The bundle reviews from a fused risk of {review:.4f} and blocks from {block:.4f}. For the
  probabilities here they mean nothing: set your own on your own traffic.
- **Long messages.** jingyin reads them in windows; here they are cut.

Weights are the bundle's, dequantised from int8.
"""

"""The update: AdamW, Muon, LAMB; the learning rate by tokens. Knows named parameters with gradients; no model and no run."""

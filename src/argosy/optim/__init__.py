"""The update: AdamW, Muon and the learning rate by tokens. Takes named parameters with gradients; knows no model and no run."""

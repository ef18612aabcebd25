"""The decoder in plain PyTorch. Takes the model section in force and batches, gives the loss; knows no layout and no run."""

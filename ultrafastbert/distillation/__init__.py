"""`ultrafastbert distill`: replaces the dense feedforward layers of a trained encoder by trees.

1. `texts`: texts become sequences of tokens, as the encoder sees them in use.
2. `fitting`: each layer's inputs are recorded, and a layer of the wanted size learns the outputs by regression.
3. `trainer`: the whole student is trained to have the hidden states and outputs of the original, its teacher.
"""

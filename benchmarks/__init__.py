"""fxq beside its peers: the models, the peers, and one command that times them together."""

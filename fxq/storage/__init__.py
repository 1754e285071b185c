from fxq.storage.load import load as load
from fxq.storage.save import save as save
from fxq.storage.tensors import stored_bytes as stored_bytes

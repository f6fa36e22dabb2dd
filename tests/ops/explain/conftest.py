from tests.core.conftest import batch_id, telling

__all__ = ["batch_id", "telling"]

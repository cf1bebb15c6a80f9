"""temporary"""

from batchgen.engine.queue import Cause, Failure


def failure_of(error: Exception, batch_size: int) -> Failure:
    name = type(error).__name__
    message = f"{name}: {' '.join(str(error).split())[:300]}"
    if name == "OutOfMemoryError" or "DefaultCPUAllocator" in message:
        return Failure(cause=Cause.MEMORY, error_class="out-of-memory", message=message)
    return Failure(cause=Cause.GENERATION, error_class=name, message=message)


def loses_device(error: Exception) -> bool:
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)

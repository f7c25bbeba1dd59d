"""What every part of mmfocal uses and that knows none of them; imports no PyTorch."""

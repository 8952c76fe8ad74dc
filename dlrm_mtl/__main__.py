"""``python -m dlrm_mtl`` is the command ``dlrm-mtl``; torchrun starts it this way."""

from dlrm_mtl.cli import main

if __name__ == "__main__":
    main()

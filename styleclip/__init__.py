"""What runs when (``flows``), its units of work (``tasks``) and the embedded world (``data``).

The method itself is the package ``styleclip_core``, the command line ``styleclip_cli``.
"""

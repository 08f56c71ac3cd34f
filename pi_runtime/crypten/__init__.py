"""Two-party inference by CrypTen: the graph as CrypTen modules, the parties and their meter."""

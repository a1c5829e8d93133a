"""Handbill's runtime: pure Python that runs unchanged in CPython and in the browser (Pyodide).

It never imports ``js`` and never touches the DOM: it is handed a Session, a Tokenizer and a clock.
"""

__version__ = "0.1.0"

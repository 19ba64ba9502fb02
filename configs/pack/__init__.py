"""Sets of models that belong together: pack=NAME."""

"""The scripts' configurations, and what composes them."""

"""Short scripts that show fxq at work; run them from the checkout's root, `python -m examples.digits_mobilenet`."""

"""hsee-ray: split learning with early exits for devices of unequal power (Hetero-SplitEE), on Ray."""

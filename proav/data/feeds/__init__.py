"""From stored segments and latents to batches: the order, the windows, the changes, in this process or on other machines."""

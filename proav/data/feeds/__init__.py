"""From stored segments and latents to batches: order, windows, augmentation; here or on other machines."""

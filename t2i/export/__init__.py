"""Write trained weights in the layouts that other tools read, and check them by reading them back."""

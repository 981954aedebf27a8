"""What every log has in common, whatever its format: its bytes, its columns, its runs, its epochs, its values."""

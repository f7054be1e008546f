"""What a training loop measures as it goes, and reads out."""

"""Data sets that the package makes by itself: pictures of emoji, and notes of a soundfont."""

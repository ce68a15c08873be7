"""From pictures to patches: sizes, resizing, cutting."""

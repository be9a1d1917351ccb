"""The look that every page of the project shares: colours, frame, style and security policy."""

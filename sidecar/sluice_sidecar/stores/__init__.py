"""Where counts are kept, beside the gate's own memory."""

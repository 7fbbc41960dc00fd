"""One model without threads, disk or network: its description, its decisions, its memory."""

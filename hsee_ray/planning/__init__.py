"""Which cut for which device, and what a trained run saves: search, report, tables, pictures."""

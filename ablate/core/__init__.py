"""What a study is made of, as data: grids, recipes, trials, the plan, the ledger of results."""

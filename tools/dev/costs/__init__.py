"""Parameters, operations, memory and time of models, counted; and the pages made of that."""

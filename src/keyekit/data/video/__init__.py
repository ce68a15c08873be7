"""Reading videos: where they lie, which frames they hold, the shortest way to the wanted ones, and two decoders."""

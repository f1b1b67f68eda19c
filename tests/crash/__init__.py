"""What is killed or stopped at every point of a run's way, and how soon the run goes on."""

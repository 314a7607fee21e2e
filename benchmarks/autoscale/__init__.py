"""What scaling with the queue costs and gains on a bursty day, against fixed numbers of workers. A simulation."""

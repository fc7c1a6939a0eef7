"""Training: one loop for all models (`train`), checkpoints that survive, and `mixsyn-fast train`."""

from .loop import train
from .options import Options
from .schedule import Schedule
from .task import Phase, Task, Trainable
from .trained import Trained, load_trained

__all__ = ["Options", "Phase", "Schedule", "Task", "Trainable", "Trained", "load_trained", "train"]

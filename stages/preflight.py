"""What can be known to fail before hours are spent."""

import torch

from hkdpipe.stages.evaluation.reference import check_reference
from hkdpipe.stages.evaluation.seen import feature_network
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.training.tensorboard_events import check_events_can_be_written
from hkdpipe.trainer.exports.programs import check_exports
from hkdpipe.trainer.losses.perceptual import backbone_file, check_perceptual
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.teacher import load_teacher


def check_stages_fit(teacher: str, training: TrainingSettings, evaluation: EvaluationSettings) -> None:
    """Check what training and evaluation need of a teacher's images, before trajectories are generated:
    raises UsageError or InputError as those stages would."""
    shape = load_teacher(teacher).image_shape
    check_perceptual(training.perceptual, training.perceptual_file, shape[0], training.perceptual_size)
    if evaluation.lpips:
        backbone_file("alex", evaluation.lpips, "lpips")
    check_exports(evaluation.exports)
    if training.tensorboard:
        check_events_can_be_written()
    if evaluation.sees or training.fd_images:
        feature_network(evaluation, shape, torch.device("cpu"))
        check_reference(evaluation.reference)

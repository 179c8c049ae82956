from hkdpipe.stages.teachers.train_teacher import _identity
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings


def test_settings_that_are_newer_than_a_training_do_not_make_it_another_one() -> None:
    older = _identity(TeacherTrainingSettings())
    assert "noise_mean" not in older
    assert older["ema"] == 0.998
    assert _identity(TeacherTrainingSettings(noise_mean=0.0)) == older | {"noise_mean": 0.0}

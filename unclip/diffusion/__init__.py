"""The method of unCLIP as pure functions of tensors: schedules, process, losses, sampling."""

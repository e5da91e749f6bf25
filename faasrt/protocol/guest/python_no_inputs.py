# Takes the place of python_inputs.py if the program has no input. Compiling that file takes longer than most calls.


class InputGiver:
    def give(self, given):
        sys.argv = [FILE]

    def rewind(self):
        pass

    def take_back(self):
        pass

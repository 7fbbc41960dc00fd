"""Write scikit-learn's handwritten digits as JSON: a list of {"pixels": 64 numbers from 0 to 1, "digit": 0 to 9}.

pip install scikit-learn
python examples/node/digits_json.py > digits.json
"""

import json

from sklearn.datasets import load_digits

data = load_digits()
images = zip((data.data / 16).tolist(), data.target.tolist(), strict=True)
print(json.dumps([{"pixels": pixels, "digit": digit} for pixels, digit in images]))

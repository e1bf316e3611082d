"""Name what is in pictures with a recorded model; needs MLflow and the model's own requirements, not ``tl``.

python predict_with_mlflow.py MODEL_ID PICTURE [PICTURE ...]     (in the folder that has mlflow.db)
"""

import sys
from pathlib import Path

import mlflow  # noqa: TID251 (an example for people without tl)
import pandas as pd

model_id, *pictures = sys.argv[1:]
model = mlflow.pyfunc.load_model(f"models:/{model_id}")
answers = model.predict(pd.DataFrame({"image": [Path(picture).read_bytes() for picture in pictures]}))
for picture, answer in zip(pictures, answers.to_dict("records"), strict=True):
    # The column is there if a picture has no prediction.
    print(f"{picture}: {answer.get('error') or '{label} ({probability:.1%})'.format(**answer)}")

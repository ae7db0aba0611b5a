import sys, time, pathlib; sys.path.insert(0,'.')
import torch; torch.set_num_threads(1); torch.backends.cudnn.enabled=False
import study_gpu as S
S.BEGAN=time.time()
table=pathlib.Path('./rows.tsv'); table.write_text("\t".join(S.COLUMNS)+"\n")
data=S.prepare('./codes.npz', torch.device('cpu'), table)
S.rows(data, torch.device('cpu')); print(time.time()-S.BEGAN)

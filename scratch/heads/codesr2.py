"""Quick: R2 of ridge on encoder codes, learnt 2,500 renders, 300 held."""
import sys; sys.path.insert(0,'.')
import numpy as np, torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from pretrain import image_model as im, heads
torch.set_num_threads(1)
net=im.Networks(128,heads.Z); net.load_state_dict(torch.load(sys.argv[1],weights_only=True)['ema']); net.eval()
def codes(p):
    with torch.no_grad(): return torch.cat([net.image_model().encode(im.to_network(torch.from_numpy(q),'cpu')) for q in np.array_split(p,len(p)//50)]).flatten(1).numpy()
a,b=np.load('truth-learnt.npz'),np.load('truth-held_out.npz')
A,B=codes(a['p']),codes(b['p'])
r=make_pipeline(StandardScaler(),RidgeCV(np.logspace(1,5,9),alpha_per_target=True)).fit(A,a['z']); y=r.predict(B)
R=1-((b['z']-y)**2).mean(0)/b['z'].var(0)
for n,v in zip(heads.NAMES,R): print(n,round(float(v),2),end='; ')
P=list(range(heads.PERSON)); print('\nperson',sum(R[P]>.5),'motion',sum(R[heads.MOTION:]>.5))

"""bake.py IN OUT: random actors at rest: motion entries of z damped, latent_avg theirs."""
import sys, json, torch, numpy as np
sys.path.insert(0,'../..'); import models
names=json.load(open('./z.json')); NAMES,MOTION=names["NAMES"],names["MOTION"]
REST = {"jawOpen": -1.3, "mouthSmile": 0.0, "mouthPucker": -1.0, "mouthStretch": -1.0, "browInnerUp": -0.4, "eyeBlink": -0.6}
c=torch.load(sys.argv[1],weights_only=True); sd=c["state_dict"]
S=torch.ones(len(NAMES)); S[MOTION:]=0.35
m=torch.zeros(len(NAMES))
for k,v in REST.items(): m[NAMES.index(k)]=v
W,b=sd["decoder.style.1.weight"].float(), sd["decoder.style.1.bias"].float()
scale=1/len(NAMES)**0.5
sd["decoder.style.1.bias"]=b+scale*W@m
sd["decoder.style.1.weight"]=(W*S).half()
old=c["latent_avg"].float()
G=models.Generator(128,128,43,3,{4:256,8:256,16:192,32:128,64:80,128:48},lr_mlp=1.0)
G.load_state_dict({k[8:]:v.float() for k,v in sd.items() if k.startswith("decoder.")})
with torch.no_grad(): new=G.style(torch.randn(20000,43,generator=torch.Generator().manual_seed(0))).mean(0)
print('latent_avg moved', (new-old).norm().item(), old.norm().item())
for k in list(sd):
    if k.startswith("encoder.styles.") and k.endswith("linear.bias"): sd[k]=sd[k].float()+old-new
o=c["opts"]; o={"name":"faces128","encoder_type":"GradualStyleEncoder","output_size":128,"lr_mlp":1.0}
torch.save({"state_dict":sd,"latent_avg":new,"opts":{**o,"quality":c["opts"]["quality"],"names":list(NAMES)}},sys.argv[2])

"""Settings that every config starts from; a config overrides what differs and adds its networks."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The blocks that all objectives share."""
    config = ml_collections.ConfigDict()
    config.objective = "deform"  # a module of deformgan/objectives
    config.seed = 0  # of initialisation, latents and batch order

    config.data = data = ml_collections.ConfigDict()
    data.source = "simulated"  # a module of deformgan/data: simulated, folder, pyramid, tfds, ...
    data.path = ""  # folder or file, for every source but the simulator
    data.set = "neurites"  # of the simulator; see deformgan/data/simulated.py
    data.count = 600  # images to simulate
    data.layer = ""  # of the simulator, drawn alone: soma_bright, soma_dim, neurites; '' for all
    data.seed = 0  # of the simulator and of the splits
    data.size = 128  # pixels along each side; frames are fitted to it
    data.channels = 1  # 1 grey, 3 colour
    data.channel = -1  # of a file with several: which one; -1 for all, or their luminance
    data.aspect = "pad"  # frames that are not square: pad, crop or stretch
    data.mixed_sizes = "refuse"  # frames of several sizes: refuse, or fit each by data.aspect
    data.z_ranges = ""  # Targettrack: planes to project, such as 0:16,16:32; '' for all
    data.screen = "report"  # faulty frames: off, report or drop
    data.recordings = ""  # names or patterns joined by commas, such as worm1*; '' for all
    data.exclude = ""  # frames to leave out: names joined by commas, or a text file of names
    data.blur = 0  # Gaussian kernel of a blur before training: 0, 3, 11, 51 or 127 pixels
    data.scaling = "percentile"  # limits of intensity: percentile of the training frames, or range
    data.percentiles = (0.01, 99.99)  # so that no single dead or hot pixel sets them
    data.range = (0.0, 255.0)  # limits for data.scaling=range, in input units
    data.validation = 0.1  # shares of the blocks of frames held out: to choose checkpoints by
    data.test = 0.2  # and for the last judgement
    data.held_out = 0  # simulated images drawn afresh as the test split, in place of data.test
    data.held_out_seed = 1000003  # that they are drawn from
    data.modality = "fom"  # of the source pyramid: fom, transmittance or retardation
    data.pairs = False  # whether each tile comes with the one it is to be predicted from
    data.inputs = "transmittance"  # modalities of that one, joined by commas
    data.direction = "AtoB"  # of aligned pairs: AtoB if the left half is that one, BtoA the right
    data.input_path = ""  # of the source folders: where those are, named as the images in data.path
    data.input_channels = 1  # of those that are no modalities: 1 grey, 3 colour
    data.input_range = (0.0, 255.0)  # their limits for data.scaling=range, in their own units
    data.level = 0  # of the pyramid; 0 is the finest
    data.brains = ""  # to read, joined by commas; '' for all
    data.sections = ""  # likewise: <section>, <brain>_<section> or <brain>_<section>_<region>
    data.held_out_sections = ""  # those of the test; '' for bands of rows of each section
    data.tiles = 4000  # to train on, of data.size; data.validation and data.test of that on top
    data.tissue = "share"  # rule that tiles must pass: share of tissue, median, both or off
    data.tissue_share = 0.75  # least share of pixels within these limits of brightness, as the
    data.tissue_fom = (16.0, 255.0)  # median must be; background is black here
    data.tissue_transmittance = (0.0, 235.0)  # and white here
    data.tissue_retardation = (4.0, 255.0)
    data.memory_mib = 1024  # sets up to this size are held in memory; larger ones are streamed

    config.source = source = ml_collections.ConfigDict()
    source.image = "auto"  # to be warped: auto, simulated, an index, or a frame's name
    source.mask = ""  # label image of it (PNG or TIFF), to be moved along; '' for its own labels
    source.set = ""  # simulated set it is drawn from, if not data.set

    config.fit = fit = ml_collections.ConfigDict()  # of the objective atlas: what it estimates
    fit.animals = ""  # recordings of each: patterns as worm1*,worm2*, or each; '' for one of all
    fit.subset = 200  # training images that the template is built from
    fit.images = 1000  # and that deformations are learned from, at most
    fit.somata = 2  # bright somata that move on their own, at most
    fit.layers = ""  # which: labels of the source, as 1,2; '' to find them
    fit.shared_control = 14  # control points of the velocity of everything, along each axis
    fit.own_control = 14  # of the neurites' own
    fit.gain_control = 8  # of their brightness
    fit.grid = 24  # points that velocities are integrated on, along each axis

    config.optimiser = optimiser = ml_collections.ConfigDict()
    for player in ("gen", "disc"):  # Adam as DCGANs use it: Radford et al. 2016, sec. 3
        optimiser[player] = ml_collections.ConfigDict()
        optimiser[player].learning_rate = 2e-4
        optimiser[player].beta1 = 0.5
        optimiser[player].beta2 = 0.999
        optimiser[player].delay = 0  # steps before it begins, while the other one learns
    optimiser.decay_from = 1.0  # share of the steps from which rates fall to 0 linearly; 1: never
    optimiser.rescale_lazy = False  # whether Adam makes up for penalties that come lazily
    optimiser.ema_decay = 0.0  # of the generator that samples are made with; 0 for the last one
    optimiser.ema_images = 0  # images in which an average halves, in place of ema_decay; 0: that
    optimiser.ema_ramp = 0.05  # but of the images seen so far at most this share

    config.augment = augment = ml_collections.ConfigDict()
    augment.translation = 0.0  # largest random shift of what D sees, of the image's side
    augment.cutout = 0.0  # side of a random square cut out of it, of the image's side
    augment.brightness = 0.0  # largest change of these; with the two above, DiffAugment
    augment.saturation = 0.0
    augment.contrast = 0.0
    augment.dihedral = False  # whether real images are flipped and turned by right angles
    augment.jitter = 0  # most pixels by which pairs are shifted along each axis
    augment.oriented = False  # whether the colours of 3 channels encode fibre directions
    augment.noise = 0.0  # standard deviation of noise on what D sees; images are in [-1, 1]
    augment.noise_steps = 0  # in which it fades to 0; 0 if it stays
    augment.adaptive = False  # ADA: operations below happen with a probability that follows D
    augment.geometric = (  # names from deformgan/adaptive_augment.py
        "flip",
        "quarter_turn",
        "shift",
        "scale",
        "rotation",
        "stretch",
        "fractional_shift",
    )
    augment.colour = ("brightness", "contrast", "luma_flip", "hue", "saturation")
    augment.target = 0.6  # of the mean sign of D(real); relativistic: of D(real) - D(fake)
    augment.kimg = 500.0  # thousands of images in which the probability may go from 0 to 1
    augment.interval = 4  # updates of D between its changes
    augment.highest = 0.8  # that it may reach

    config.train = train = ml_collections.ConfigDict()
    train.steps = 4000
    train.batch_size = 16  # over all devices
    train.disc_updates = 1  # of the discriminator in a step, each on another batch
    train.gen_updates = 1  # of the generator, after those
    train.steps_per_call = 1  # more (100, say) on GPU and TPU; 1 is fastest on CPU

    config.log = log = ml_collections.ConfigDict()
    log.every = 100  # steps between lines of metrics.jsonl
    log.pictures = 1000  # steps between pictures

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 1000  # steps
    checkpoint.keep = 2  # newest ones; the best is kept beside them
    checkpoint.best = "sliced_wasserstein"  # metric it is chosen by: any of metrics.jsonl that has
    # an ideal, such as diversity or evaluate/kid_random

    config.evaluate = evaluate = ml_collections.ConfigDict()
    evaluate.tests = ("statistics", "cnn")  # two-sample tests; the worst is the verdict
    evaluate.metrics = (  # families in deformgan/metrics
        "distances",
        "manifold",
        "copying",
        "diversity",
        "image_error",
        "field_health",
    )
    evaluate.features = ("random", "encoder", "inception")  # that distances are measured in
    evaluate.inception_weights = ""  # see python -m deformgan.models.convert_inception
    evaluate.count = 10000  # most images of each kind
    evaluate.test_count = 1000  # most of them in a two-sample test
    evaluate.paired = False  # whether --fake predicts --real, file by file of the same name
    evaluate.passes = (
        8  # predictions of one input, where the generator makes them by chance; 0: one
    )
    evaluate.seed = 0
    evaluate.every = 0  # steps between quick evaluations on validation frames in training; 0: none
    evaluate.budget = 256  # most images in those
    return config


def maps_of_fibres(config):
    """Makes the data simulated 3D-PLI tiles of 64x64, whose colours encode directions."""
    config.data.source = "pli"
    config.data.set = ""
    config.data.count = 2500
    config.data.size = 64
    config.data.channels = 3
    config.data.scaling = "range"  # colours are angles, which percentiles would change
    config.data.screen = "off"
    config.augment.oriented = True
    config.augment.dihedral = True


def apply_variants(config, variants, known):
    """Applies each of the comma-joined `variants`, a function of `known` by name, in order."""
    for name in filter(None, variants.split(",")):
        if name not in known:
            raise ValueError(f"config: unknown variant {name!r}; choose from {', '.join(known)}")
        known[name](config)
    return config

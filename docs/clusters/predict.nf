// nextflow run predict.nf --slides '/data/slides/*.svs' --out /data/results --genes GNAS,DDX5
params.slides = null
params.out = 'results'
params.genes = null

process PREDICT {
    cpus 8
    memory '16 GB'
    time '12h'
    // What was done stays: a task that is tried again goes on where it was. 75: another task is at the slide.
    errorStrategy { task.exitStatus in [75, 137, 143] && task.attempt < 4 ? 'retry' : 'ignore' }
    maxRetries 3

    input:
    val slide  // not a path: some slides are a file and a folder, and results say where their slide lies

    output:
    stdout

    script:
    def genes = params.genes ? "--genes ${params.genes}" : ''
    """
    stpredict predict '${slide}' -o '${file(params.out)}' ${genes} --threads ${task.cpus}
    """
}

workflow {
    PREDICT(channel.fromPath(params.slides).map { it.toString() }).view { it.trim() }
}

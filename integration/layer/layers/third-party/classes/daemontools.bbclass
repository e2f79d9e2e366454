# A service is a folder with two scripts. Each line is the text of a variable between double quotes, so the shell reads it once.
DAEMONTOOLS_SERVICE_DIR ?= "/opt/victronenergy/service/${PN}"
DAEMONTOOLS_LOG_DIR ?= "${localstatedir}/log/${PN}"
DAEMONTOOLS_SCRIPT ?= "exec ${DAEMONTOOLS_RUN}"

do_install:append() {
    service=${D}${DAEMONTOOLS_SERVICE_DIR}
    install -d $service/log
    for script in $service/run $service/log/run; do
        echo "#!/bin/sh" > $script
        echo "exec 2>&1" >> $script
        chmod 0755 $script
    done
    echo "${DAEMONTOOLS_SCRIPT}" >> $service/run
    echo "exec multilog t s25000 n4 ${DAEMONTOOLS_LOG_DIR}" >> $service/log/run
}

FILES:${PN} += "${DAEMONTOOLS_SERVICE_DIR}"

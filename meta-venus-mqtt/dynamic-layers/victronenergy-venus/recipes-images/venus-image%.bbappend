# Every image of Venus OS: venus-image, -large, -containers, -oci. Nothing changes unless local.conf says
#
#     VENUS_MQTT_IN_IMAGE = "1"

IMAGE_INSTALL:append:venus = " ${@'venus-mqtt' if bb.utils.to_boolean(d.getVar('VENUS_MQTT_IN_IMAGE'), False) else ''}"
